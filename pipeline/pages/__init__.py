"""The pages that people look at: the report of a run, one clip explained, arms compared, a night.

Each page is one HTML file that needs no network. `charts` draws small SVG charts, `pictures` cuts clips into film
strips with their masks, `gallery` chooses which clips are shown, and `funnel` counts where every clip went. The
markup is in `templates/`.
"""
