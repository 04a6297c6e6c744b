"""`python -m craft_easy_jobd` is `craft-easy-jobd`."""

from craft_easy_jobd.cli import main

if __name__ == "__main__":
    main()
