"""One file per architecture: its configuration, its tensor names; op bodies that they share."""
