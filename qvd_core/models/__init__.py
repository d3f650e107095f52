"""What can be loaded, how it is loaded, and where in it the parts that papers speak of live."""
