"""Where files are and how they are written: on a disk or in a bucket, whole or not at all."""
