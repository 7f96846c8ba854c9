"""Collections that outgrow one machine, kept and searched by an engine: Qdrant or Milvus."""
