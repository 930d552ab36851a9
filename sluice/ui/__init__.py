"""`sluice ui`: a run in a browser, live or finished, several at once (docs/ui.md).

What a view shows is read by `files`, `ledger`, `evaluations`, `prompts` and `live`, none of which knows a page. `views` has one
file for each view, which only lays out what these say. `gate` decides who may see the pages. Texts of a run reach the browser
as text, never as markup.
"""
