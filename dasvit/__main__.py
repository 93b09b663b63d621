"""`python -m dasvit …`"""

from dasvit.run.garbage import lasting_imports

if __name__ == "__main__":
    with lasting_imports():
        from dasvit.cli import main
    main()
