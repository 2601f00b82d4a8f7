"""Load tests with locust: scenarios say what is sent, users how it is timed, shapes how many there are."""
