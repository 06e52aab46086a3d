"""Data set folders: a generated marketplace (`generate`) and public data sets (`download`)."""
