"""Accuracy on labelled images: data sets, classifiers, the run over one or many processes, its result."""
