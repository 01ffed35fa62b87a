"""Analyses that read a model without a task of their own: what parts say in the vocabulary, what heads attend to."""
