"""`python -m bucketrank_cli`, where the `bucketrank` script is not on the path."""

from .main import main

main()
