"""From public and written data to the shipped artifact: `make train`."""
