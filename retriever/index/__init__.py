"""A searchable folder: versions of immutable segments, changed by writing new ones and switching over in one step."""
