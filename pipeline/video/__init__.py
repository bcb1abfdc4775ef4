"""Video files to frames, from files that nobody vouches for.

`frames` decodes a segment by its time stamps and writes mp4. `decoder` runs that in a child process with limits of
memory and time, which `seccomp` keeps from sockets and programs. `packets`, `timeline`, `lengths` and `orientation`
say what a file holds, `cuts` where a shot ends, and `indexing` turns videos into rows of clips.
"""
