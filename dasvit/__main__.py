"""`python -m dasvit …`"""

from dasvit.cli import main

if __name__ == "__main__":
    main()
