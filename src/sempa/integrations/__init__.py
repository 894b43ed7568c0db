"""Sempa's embeddings in the shapes that other people's tools ask for; each module imports its tool when it is imported.

sentence-transformers needs no module: `sempa export --sentence-transformers` writes a folder that it loads by itself.
"""
