"""An OpenAI-compatible server: one loaded model that embeds and answers, in one process."""
