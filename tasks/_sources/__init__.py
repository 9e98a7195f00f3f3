"""Sources: files of rows, local or on S3, read one row at a time; what several stages make of a row's fields."""
