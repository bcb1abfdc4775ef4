"""The blind study: people judge two videos at a time and do not know which arm made them.

`pairs` and `films` choose what is shown, `handout` builds the page that is given away, `answers` reads what people
send back, `preferences` scores it, and `results` writes the tables and the page of the outcome.
"""
