"""`retriever serve`: indexes behind an HTTP interface. It needs the extra [serve]; `retriever.client` speaks to it and does not."""
