"""conda as a source: channels, solving, and packages' files at their places."""
