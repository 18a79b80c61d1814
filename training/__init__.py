"""From public and written data to the shipped artifact: `make train`."""

import service  # noqa: F401 — turns the runtime's usage reports off before it is imported
