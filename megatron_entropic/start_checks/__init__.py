"""What can be known to be wrong with a run before anything is started: its model, its layout, its data, what it shall learn."""
