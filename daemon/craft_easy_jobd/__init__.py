"""The daemon: supervises runs of jobs that were written with `craft_easy_jobs`."""
