"""The checks that packaging/check runs."""
