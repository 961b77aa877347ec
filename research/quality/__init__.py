"""Quality on any text: own profiles, one general profile, and the bound on text of many kinds."""
