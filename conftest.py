"""Here so that pytest finds ``spec``, which is no part of the installed package."""
