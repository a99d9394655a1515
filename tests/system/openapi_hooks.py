"""For schemathesis: it knows no serializer of lines of JSON."""
import schemathesis

schemathesis.serializer.alias("application/x-ndjson", "text/plain")
