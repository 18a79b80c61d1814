"""The tables as older versions made them."""

# As version 1 made it, but for the audit table's columns, which have not changed since.
VERSION_1 = """
CREATE TABLE schema_version (id INTEGER NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (id));
CREATE TABLE api_keys (id TEXT NOT NULL, tenant TEXT NOT NULL, digest TEXT NOT NULL, roles TEXT NOT NULL,
    created_at DOUBLE NOT NULL, expires_at DOUBLE, revoked_at DOUBLE, PRIMARY KEY (id));
CREATE INDEX ix_api_keys_tenant ON api_keys (tenant);
CREATE TABLE audit (id INTEGER NOT NULL, time DOUBLE NOT NULL, request_id TEXT NOT NULL, tenant TEXT NOT NULL,
    key_id TEXT NOT NULL, protocol TEXT NOT NULL, model TEXT NOT NULL, provider TEXT NOT NULL, action TEXT NOT NULL,
    category TEXT NOT NULL, status INTEGER NOT NULL, findings TEXT NOT NULL, unjudged TEXT NOT NULL,
    unscannable TEXT NOT NULL, prompt_tokens BIGINT NOT NULL, completion_tokens BIGINT NOT NULL,
    judge_ms DOUBLE NOT NULL, upstream_ms DOUBLE NOT NULL, reply_judge_ms DOUBLE NOT NULL, total_ms DOUBLE NOT NULL,
    stream BOOLEAN NOT NULL, unknown_fields TEXT NOT NULL, error TEXT NOT NULL, PRIMARY KEY (id), UNIQUE (request_id));
CREATE INDEX ix_audit_time ON audit (time);
INSERT INTO schema_version VALUES (1, 1);
"""
