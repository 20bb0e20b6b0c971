"""Where the pixels of a detector are: panels, their places in the data and in the laboratory."""
