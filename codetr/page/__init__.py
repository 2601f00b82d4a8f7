"""The page of `codetr web`: a small HTTP server between a browser and the client."""
