"""The service: predictions, review and training over HTTP. The only room that imports fastapi and uvicorn."""
