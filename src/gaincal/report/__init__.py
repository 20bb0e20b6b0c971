"""Pictures of frames, and the report of a run; the only room that imports Jinja2, and matplotlib beside `picture`."""
