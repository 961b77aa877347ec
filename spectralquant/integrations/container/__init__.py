"""A vLLM server with the tier in a container, for SageMaker, Vertex AI and by itself."""
