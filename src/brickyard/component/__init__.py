"""Components: small working models for one task, cut from one source."""
