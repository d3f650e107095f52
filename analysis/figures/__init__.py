"""What the tables of this package look like: each function makes a `Drawing` of one table."""
