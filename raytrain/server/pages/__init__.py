"""The pages of `raytrain serve`.

The server renders what is needed at first sight (the rows of Runs, the head of a run). What changes
or is large comes from the API as JSON and is drawn by the modules in `static/`; live pages ask
again when the event stream says that something changed.

    routes.py     the pages, and the files that they load
    shown.py      numbers, times and lines of scores as text and SVG
    templates/    Jinja2, autoescaped
    static/       JavaScript modules and one style sheet, without a build step

Names, metrics and messages come from storage and are hostile: templates escape them, and the
modules only ever set them as text. The Content-Security-Policy forbids inline scripts and styles.
"""
