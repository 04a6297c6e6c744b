"""Files of every version of our formats: they must load for ever."""
