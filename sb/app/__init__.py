"""The browser app and its REST interface (``pip install -e '.[app]'``)."""
