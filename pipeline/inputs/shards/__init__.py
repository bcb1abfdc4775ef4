"""Videos inside WebDataset tar files and Parquet files. `members` says where one lies and fetches it."""
