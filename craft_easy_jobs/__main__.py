"""`python -m craft_easy_jobs` is `craft-easy-job`."""

from craft_easy_jobs.cli import main

if __name__ == "__main__":
    main()
