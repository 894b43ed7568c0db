"""Sempa in other tools: LangChain, LlamaIndex, mteb, lm-evaluation-harness, and a server for OpenAI's clients.

sentence-transformers needs no module: `sempa export --sentence-transformers` writes a folder that it loads by itself.
"""
