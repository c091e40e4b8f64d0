"""Makes `report.html`: one page that says whether a run is better, and why.

    write_report("runs/2-signs")                    # runs/2-signs/report.html
    write_report("runs/2-signs", "runs/3-signs")   # two runs

`source` reads a run, `facts` computes, `charts` lays out, `render` fills the templates. docs/report.md says what each part
of the page answers.
"""
