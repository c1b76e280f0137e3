"""Where the parts of a data set lie, by the layouts of the tools that people annotate with."""
