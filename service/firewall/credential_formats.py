"""The formats of credentials that begin with a fixed prefix, and the words that announce a credential.

Prefixes, alphabets and lengths are facts of the vendors' own documentation, compared with the rules of secret scanners
(gitleaks, detect-secrets, GitHub's list of scanned secrets). A length is a least one wherever the prefix is telling: a
letter written behind a token must not hide it.
"""

from __future__ import annotations

import msgspec

from service.firewall import credential_checks as checks

_HEX = "[0-9a-f]"
_ANY = "[0-9A-Za-z]"
_WORD = "[0-9A-Za-z_-]"
_END = "(?![0-9A-Za-z])"
_UUID = f"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}"


class Format(msgspec.Struct, frozen=True):
    """One format: any of `prefixes`, then `body` (a regular expression).

    `least_bits`: Shannon entropy of the body, bits a character. `check`: the whole token's checksum; where it holds,
    the token is certain; where it fails, the token is still found unless `strict`, for a model may well write one
    character of a key wrong, or be asked to.
    """

    name: str
    prefixes: tuple[str, ...]
    body: str
    least_bits: float = 3.0
    check: checks.Check | None = None
    strict: bool = False


def _of(name: str, prefixes: str, body: str, least_bits: float = 3.0, check: checks.Check | None = None) -> Format:
    return Format(name, tuple(prefixes.split()), body, least_bits, check)


FORMATS: tuple[Format, ...] = (
    # cloud
    _of("aws access key id", "AKIA ASIA ABIA ACCA", f"[A-Z2-7]{{16}}{_END}", 3.0, checks.aws_account),
    _of("aws bedrock api key", "ABSK", "[0-9A-Za-z+/]{109,}=*", 3.5),
    _of("aws bedrock short-lived key", "bedrock-api-key-", "[0-9A-Za-z+/=-]{40,}", 3.5),
    _of("google api key", "AIza", f"{_WORD}{{35,}}", 3.3),
    _of("google oauth client secret", "GOCSPX-", f"{_WORD}{{28,}}"),
    _of("google oauth access token", "ya29.", "[0-9A-Za-z_.-]{40,}", 3.5),
    _of("google oauth refresh token", "1//0", f"{_WORD}{{40,}}", 3.5),
    _of("digitalocean token", "dop_v1_ doo_v1_ dor_v1_", f"{_HEX}{{64,}}"),
    _of("alibaba access key id", "LTAI", f"{_ANY}{{16,24}}{_END}"),
    _of("tencent secret id", "AKID", f"{_ANY}{{32,36}}{_END}", 3.3),
    _of("yandex cloud key", "AQVN", f"{_WORD}{{35,38}}{_END}", 3.3),
    _of("cloudflare origin ca key", "v1.0-", f"{_HEX}{{24}}-{_HEX}{{146,}}"),
    _of("heroku api key", "HRKU-", f"(?:AA{_WORD}{{58,}}|{_UUID})"),
    _of("fly.io token", "fm1_ fm2_ fo1_", "[0-9A-Za-z+/=_-]{43,}", 3.5),
    _of("netlify token", "nfp_", f"{_ANY}{{36,}}"),
    _of("render api key", "rnd_", f"{_ANY}{{28,}}"),
    _of("supabase token", "sbp_", f"{_HEX}{{40,}}"),
    _of("supabase secret key", "sb_secret_", f"{_WORD}{{22,}}"),
    _of("planetscale token", "pscale_tkn_ pscale_pw_ pscale_oauth_", "[0-9A-Za-z_.=-]{32,}"),
    _of("databricks token", "dapi", f"{_HEX}{{32,}}"),
    _of("hashicorp vault token", "hvs. hvb. hvr.", f"{_WORD}{{24,}}", 3.3),
    _of("pulumi token", "pul-", f"{_HEX}{{40,}}"),
    _of("doppler token", "dp.pt. dp.st. dp.sa. dp.ct. dp.scim. dp.audit.", "(?:[0-9a-z_-]{2,35}\\.)?[0-9A-Za-z]{40,}"),
    _of("scalingo token", "tk-us-", f"{_WORD}{{48,}}"),
    _of("tailscale key", "tskey-auth- tskey-api- tskey-client- tskey-scim- tskey-webhook- tskey-", f"{_WORD}{{20,}}"),
    _of("age secret key", "AGE-SECRET-KEY-1 age-secret-key-1", f"{_ANY}{{58}}", 3.0, checks.bech32),
    _of("1password service account", "ops_eyJ", "[0-9A-Za-z+/=_-]{200,}", 3.5),
    _of("openshift token", "sha256~", f"{_WORD}{{43,}}", 3.3),
    _of("dynatrace token", "dt0c01. dt0s01. dt0s16.", "[A-Z2-7]{8,24}\\.[A-Z2-7]{64,}"),
    # code and its delivery
    _of("github token", "ghp_ gho_ ghu_ ghs_ ghr_", f"{_ANY}{{36,}}", 3.0, checks.crc_base62),
    _of("github fine-grained token", "github_pat_", "[0-9A-Za-z_]{60,}", 3.3),
    _of(
        "gitlab token",
        "glpat- gldt- glrt- glrtr- glcbt- glptt- glft- glimt- glagent- glsoat- gloas- glffct- glwt- GR1348941",
        "[0-9A-Za-z_.-]{20,}",
    ),
    _of("atlassian token", "ATATT3 ATCTT3", "[0-9A-Za-z_=-]{60,}", 3.5),
    _of("bitbucket app password", "ATBB", f"{_ANY}{{32,}}"),
    _of("sourcegraph token", "sgp_", f"(?:(?:{_HEX}{{16}}|local)_)?{_HEX}{{40,}}"),
    _of("npm token", "npm_", f"{_ANY}{{36,}}", 3.0, checks.crc_base62),
    _of("pypi token", "pypi-", f"{_WORD}{{70,}}", 3.3, checks.pypi),
    _of("rubygems key", "rubygems_", f"{_HEX}{{48,}}"),
    _of("nuget key", "oy2", f"[0-9a-z]{{43}}{_END}", 3.3),
    _of("crates.io token", "cio", f"{_ANY}{{32}}{_END}", 3.5),
    _of("clojars token", "CLOJARS_", "[0-9a-z]{60,}"),
    _of("packagist token", "packagist_ort_ packagist_uut_ packagist_out_", f"{_HEX}{{64,}}"),
    _of("jfrog key", "AKCp cmVmdGtu cmVmdG", f"{_ANY}{{56,}}", 3.5),
    _of("docker token", "dckr_pat_ dckr_oat_", f"{_WORD}{{27,}}"),
    _of("sonar token", "squ_ sqp_ sqa_", f"{_HEX}{{40,}}"),
    _of("snyk token", "snyk_uat. snyk_sat.", "[0-9A-Za-z_.-]{40,}"),
    _of("jetbrains token", "perm: perm-", "[0-9A-Za-z+/=]{8,}\\.[0-9A-Za-z+/=]{4,}\\.[0-9A-Za-z+/=]{20,}"),
    _of("circleci token", "CCIPAT_ CCIPRJ_", "[0-9A-Za-z_]{40,}"),
    _of("buildkite token", "bkua_", f"{_HEX}{{40,}}"),
    _of("postman key", "PMAK-", f"{_HEX}{{24}}-{_HEX}{{34,}}"),
    _of("prefect key", "pnu_ pnb_", f"{_ANY}{{36,}}"),
    _of("readme key", "rdme_xn8s9h", f"{_ANY}{{60,}}"),
    # models and their tools
    _of("anthropic key", "sk-ant-", f"(?:api|admin|sid|oat|ort)\\d\\d-{_WORD}{{60,}}", 3.5),
    _of("openai key", "sk-proj- sk-svcacct- sk-admin- sk-None-", f"{_WORD}{{40,}}", 3.5),
    _of("openrouter key", "sk-or-v1-", f"{_HEX}{{64,}}"),
    _of("langfuse secret key", "sk-lf-", _UUID),
    _of("key of the form sk-…", "sk-", f"{_ANY}{{32,}}", 3.3),
    _of("hugging face token", "hf_ api_org_", f"[A-Za-z]{{34,}}{_END}", 3.3),
    _of("groq key", "gsk_", f"{_ANY}{{48,}}", 3.5),
    _of("xai key", "xai-", f"{_ANY}{{70,}}", 3.5),
    _of("perplexity key", "pplx-", f"{_ANY}{{40,}}", 3.3),
    _of("replicate token", "r8_", f"{_ANY}{{37,}}", 3.3),
    _of("nvidia key", "nvapi-", f"{_WORD}{{60,}}", 3.5),
    _of("langsmith key", "lsv2_pt_ lsv2_sk_", f"{_HEX}{{32}}_{_HEX}{{10,}}"),
    _of("pinecone key", "pcsk_", "[0-9A-Za-z_]{40,}", 3.3),
    _of("tavily key", "tvly-", f"{_WORD}{{32,}}"),
    _of("cerebras key", "csk-", f"{_ANY}{{48,}}"),
    _of("fireworks key", "fw_", f"{_ANY}{{22,}}{_END}", 3.5),
    _of("together key", "tgp_v1_", f"{_WORD}{{40,}}"),
    _of("firecrawl key", "fc-", f"{_HEX}{{32}}{_END}"),
    _of("elevenlabs key", "sk_", f"{_HEX}{{48}}{_END}"),
    _of("weights & biases key", "wandb_v1_", "[0-9A-Za-z_]{40,}", 3.3),
    # payment and commerce
    _of("stripe key", "sk_live_ sk_test_ sk_prod_ rk_live_ rk_test_ rk_prod_ sk_org_live_", f"{_ANY}{{16,}}"),
    _of("webhook signing secret", "whsec_", "[0-9A-Za-z+/=]{24,}", 3.3),
    _of("square token", "EAAA sq0atp- sq0csp- sq0idp-", f"{_WORD}{{22,}}{_END}", 3.3),
    _of("braintree token", "access_token$production$ access_token$sandbox$", f"[0-9a-z]{{16}}\\${_HEX}{{32}}"),
    _of("shopify token", "shpat_ shpca_ shppa_ shpss_ shptka_", "[0-9A-Fa-f]{32,}"),
    _of("razorpay key id", "rzp_live_ rzp_test_", f"{_ANY}{{14,}}"),
    _of("flutterwave key", "FLWSECK_TEST- FLWSECK- FLWSECK_LIVE-", f"{_ANY}{{32,}}"),
    _of("plaid token", "access-sandbox- access-development- access-production-", _UUID),
    _of("mollie key", "live_ test_", f"{_ANY}{{30,}}{_END}", 3.5),
    _of("easypost key", "EZAK EZTK", f"{_ANY}{{54,}}", 3.5),
    _of("duffel token", "duffel_live_ duffel_test_", f"{_WORD}{{43,}}"),
    _of("shippo token", "shippo_live_ shippo_test_", f"{_HEX}{{40,}}"),
    _of("adobe client secret", "p8e-", f"{_ANY}{{32,}}"),
    # chat, mail, telephony
    _of(
        "slack token",
        "xoxb- xoxa- xoxp- xoxr- xoxs- xoxo- xoxe- xoxe.xoxp- xoxe.xoxb- xoxc- xoxd- xapp-",
        f"{_WORD}{{20,}}",
    ),
    _of("twilio api key", " ".join(f"SK{digit}" for digit in "0123456789abcdef"), f"{_HEX}{{31}}{_END}"),
    _of("sendgrid key", "SG.", f"{_WORD}{{16,32}}\\.{_WORD}{{16,64}}", 3.5),
    _of("mailgun key", "key-", f"{_HEX}{{32}}{_END}"),
    _of("brevo key", "xkeysib- xsmtpsib-", f"{_HEX}{{64}}-{_ANY}{{16,}}"),
    _of("resend key", "re_", f"{_ANY}{{8}}_{_ANY}{{20,}}", 3.5),
    _of("facebook token", "EAA", f"{_ANY}{{90,}}", 3.5),
    _of("instagram token", "IGQV IGAA", f"{_WORD}{{60,}}", 3.5),
    # watching and working together
    _of("grafana service account", "glsa_", f"{_ANY}{{32}}_[0-9A-Fa-f]{{8}}", 3.0, checks.grafana),
    _of("grafana cloud token", "glc_", "[0-9A-Za-z+/=]{32,}", 3.3),
    _of("new relic key", "NRAK- NRII- NRIQ- NRJS- NRRA- NRBR- NRAA-", f"{_WORD}{{19,}}"),
    _of("sentry token", "sntryu_ sntrys_", "[0-9A-Za-z+/=_-]{64,}", 3.0),
    _of("posthog key", "phx_", f"{_ANY}{{40,}}", 3.3),
    _of("launchdarkly key", "sdk- api-", f"{_UUID}{_END}"),
    _of("honeycomb key", "hcaik_ hcamk_ hcbik_", f"{_ANY}{{50,}}"),
    _of("airtable token", "pat", f"{_ANY}{{14}}\\.{_HEX}{{64,}}"),
    _of("notion token", "ntn_ secret_", f"{_ANY}{{43,}}", 3.5),
    _of("linear key", "lin_api_ lin_oauth_", f"{_ANY}{{40,}}"),
    _of("figma token", "figd_ figo_ figu_", f"{_WORD}{{40,}}", 3.3),
    _of("hubspot token", "pat-na1- pat-na2- pat-eu1-", f"(?i:{_UUID})"),
    _of("typeform token", "tfp_", "[0-9A-Za-z_.=-]{59,}", 3.3),
    _of("contentful token", "CFPAT-", f"{_WORD}{{43,}}", 3.3),
    _of("dropbox token", "sl.", "[0-9A-Za-z_-]{100,}", 3.5),
    _of("frame.io token", "fio-u-", f"{_WORD}{{64,}}", 3.3),
    _of("mapbox secret token", "sk.eyJ", f"{_WORD}{{30,}}\\.{_WORD}{{20,}}", 3.3),
    _of("nostr secret key", "nsec1", f"{_ANY}{{58}}", 3.0, checks.bech32),
    Format("bip32 private key", ("xprv",), f"{_ANY}{{107}}", 3.0, checks.base58check, strict=True),
)

# A fixed text in the middle, the secret behind it: what stands before is no secret.
WEBHOOKS: tuple[tuple[str, str, str], ...] = (
    ("slack webhook", "hooks.slack.com/", "(?:services|workflows|triggers)/[0-9A-Z]+/[0-9A-Z]+/[0-9A-Za-z/]{16,}"),
    ("discord webhook", "discord.com/api/webhooks/", f"\\d{{17,20}}/{_WORD}{{60,}}"),
    ("discord webhook", "discordapp.com/api/webhooks/", f"\\d{{17,20}}/{_WORD}{{60,}}"),
    (
        "teams webhook",
        "webhook.office.com/webhookb2/",
        "[0-9a-f-]{36}@[0-9a-f-]{36}/IncomingWebhook/[0-9a-f]{32}[/0-9A-Za-z-]*",
    ),
    ("zapier webhook", "hooks.zapier.com/hooks/catch/", "\\d{6,10}/[0-9A-Za-z]{7,}"),
)

PASSWORDS = ("password", "passwd", "passwort", "contraseña", "mot de passe", "passphrase", "pwd", "pass")
"""Words before a value that a person may have chosen: eight characters, two kinds."""

SECRETS = (
    "secret", "secretkey", "secret_key", "secret-key", "secret key", "secretaccesskey", "secret_access_key",
    "secret access key", "client_secret", "clientsecret", "client secret", "apikey", "api_key", "api-key", "api key",
    "accesskey", "access_key", "access-key", "access key", "accountkey", "sharedaccesskey", "sharedaccesssignature",
    "privatekey", "private_key", "private-key", "private key", "encryptionkey", "encryption_key", "encryption key",
    "signingkey", "signing_key", "signing key", "masterkey", "master_key", "master key", "authkey", "auth_key",
    "licensekey", "license_key", "credential", "credentials", "bot token",
)  # fmt: skip
"""Words before a value that a machine made: twenty characters that look random."""

TOKENS = ("token", "bearer", "authtoken", "auth_token", "accesstoken", "access_token", "access token", "refresh_token")
"""The same, but UUIDs and hashes behind them are often no secrets: pages, traces and messages have tokens, too."""
