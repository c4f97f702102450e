"""``bench prediction``: is what the plan says what the run takes?"""
