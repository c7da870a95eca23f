"""Commands of the command line beside training: one function each."""
