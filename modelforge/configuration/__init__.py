"""From a TOML to sections and back; it knows no section of modelforge, only the class `Section`.

`document` reads a file with the line of each key, `syntax_mistakes` says what is wrong with one that is no TOML, `overrides`
reads `--set`, `merging` puts them above the file and makes paths absolute, `schema` says what a key may hold and `wording`
says it in English, `mistakes` finds what validation refuses and where, `explanations` says it with a remedy, `loading` does
all of this in one call, and `writing` turns sections into TOML again.
"""
