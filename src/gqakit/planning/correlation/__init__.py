"""Are the scores that methods minimise a guide to what a grouping costs the model?"""
