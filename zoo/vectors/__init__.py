"""Files of vectors: made from folders and tables in runs that can be stopped, read and searched."""
