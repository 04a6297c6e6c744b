"""The distribution, the tree, the tools."""
