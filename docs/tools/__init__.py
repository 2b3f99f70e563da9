"""What builds the site: staging of pages, the API reference, result tables, code links, and the check of the finished pages."""
