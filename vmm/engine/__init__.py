"""The use-cases: what a face asks for, carried out over the services and backends."""
