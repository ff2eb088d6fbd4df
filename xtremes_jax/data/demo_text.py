"""What the demo corpus says: small grammars of six languages, written for this project.

Words within a slot agree with everything beside them (one gender and number a slot), so any combination is a correct
sentence. The vocabulary is small on purpose: a tiny model trained for minutes from random weights shall understand
sentences it has never heard, though it has heard all of their words.
"""

from itertools import product

LANGUAGES = ("en", "es", "fr", "it", "de", "pl")

# ------------------------------------------------------------------------------------------------------------ mls
# Slots, in order: verb, object, place, day, person, act, number, thing, colour; and the patterns they fill.
_SLOTS = ("verb", "object", "place", "day", "person", "act", "number", "thing", "colour")
_COMMANDS = {
    "en": (
        "open|close|clean|paint|check",
        "the door|the window|the box|the drawer|the cupboard|the gate",
        "in the kitchen|in the garden|in the office|in the cellar|in the hall",
        "on monday|on tuesday|on wednesday|on thursday|on friday|on saturday|on sunday",
        "anna|peter|lucy|george|emma",
        "buys|sells|brings|wants|counts",
        "two|three|four|five|six|seven|eight|nine|ten",
        "apples|oranges|flowers|shirts|chairs|bottles",
        "red|green|white|black|yellow",
        "{person} {act} {number} {colour} {thing}",
    ),
    "es": (
        "abre|cierra|limpia|pinta|revisa",
        "la puerta|la ventana|la caja|la maleta|la verja|la despensa",
        "de la cocina|del jardín|de la oficina|del sótano|del pasillo",
        "el lunes|el martes|el miércoles|el jueves|el viernes|el sábado|el domingo",
        "maría|juan|lucía|andrés|sofía",
        "compra|vende|lleva|busca|quiere",
        "dos|tres|cuatro|cinco|seis|siete|ocho|nueve|diez",
        "manzanas|naranjas|flores|camisas|sillas|botellas",
        "rojas|verdes|blancas|negras|amarillas",
        "{person} {act} {number} {thing} {colour}",
    ),
    "fr": (
        "ouvre|ferme|nettoie|repeins|vérifie",
        "la porte|la fenêtre|la boîte|la valise|la barrière|l'armoire",
        "de la cuisine|du jardin|du bureau|de la cave|du couloir",
        "lundi|mardi|mercredi|jeudi|vendredi|samedi|dimanche",
        "marie|paul|chloé|rené|hélène",
        "achète|vend|apporte|cherche|compte",
        "deux|trois|quatre|cinq|six|sept|huit|neuf|dix",
        "pommes|oranges|fleurs|chemises|chaises|bouteilles",
        "rouges|vertes|blanches|noires|jaunes",
        "{person} {act} {number} {thing} {colour}",
    ),
    "it": (
        "apri|chiudi|pulisci|dipingi|controlla",
        "la porta|la finestra|la scatola|la valigia|la credenza|il cancello",
        "della cucina|del giardino|dell'ufficio|del salotto|della cantina",
        "lunedì|martedì|mercoledì|giovedì|venerdì|sabato|domenica",
        "maria|paolo|chiara|niccolò|giulia",
        "compra|vende|porta|cerca|vuole",
        "due|tre|quattro|cinque|sei|sette|otto|nove|dieci",
        "mele|arance|rose|camicie|sedie|bottiglie",
        "rosse|verdi|bianche|nere|gialle",
        "{person} {act} {number} {thing} {colour}",
    ),
    "de": (
        "öffne|schließe|putze|streiche|prüfe",
        "die tür|das fenster|die kiste|den schrank|den koffer|das tor",
        "in der küche|im garten|im büro|im keller|im flur",
        "am montag|am dienstag|am mittwoch|am donnerstag|am freitag|am samstag|am sonntag",
        "anna|jürgen|sophie|klaus|käthe",
        "kauft|verkauft|bringt|sucht|zählt",
        "zwei|drei|vier|fünf|sechs|sieben|acht|neun|zehn",
        "äpfel|orangen|blumen|hemden|stühle|flaschen",
        "rote|grüne|weiße|schwarze|gelbe",
        "{person} {act} {number} {colour} {thing}",
    ),
    "pl": (
        "otwórz|zamknij|wyczyść|pomaluj|sprawdź",
        "drzwi|okno|pudełko|szafę|walizkę|bramę",
        "w kuchni|w ogrodzie|w biurze|w piwnicy|w korytarzu",
        "w poniedziałek|we wtorek|w środę|w czwartek|w piątek|w sobotę|w niedzielę",
        "anna|paweł|zofia|michał|łucja",
        "kupuje|sprzedaje|przynosi|zamawia|liczy",
        "pięć|sześć|siedem|osiem|dziewięć|dziesięć",
        "jabłek|pomarańczy|kwiatów|koszul|krzeseł|butelek",
        "czerwonych|zielonych|białych|czarnych|żółtych",
        "{person} {act} {number} {colour} {thing}",
    ),
}

# ------------------------------------------------------------------------------------------------------ voxpopuli
# Who, does, what, when: a parliament, in the register of VoxPopuli's normalised text.
_PARLIAMENT = {
    "en": (
        "the council|the commission|this parliament|our group|the committee",
        "supports|rejects|discusses|welcomes|prepares",
        "the new budget|the energy law|the trade agreement|the climate report|the common policy|the digital market",
        "today|this week|this year|in june|in autumn|before the vote",
    ),
    "es": (
        "el consejo|la comisión|este parlamento|nuestro grupo|el comité",
        "apoya|rechaza|debate|acoge|prepara",
        "el nuevo presupuesto|la ley de energía|el acuerdo comercial|el informe sobre el clima|la política común"
        "|el mercado digital",
        "hoy|esta semana|este año|en junio|en otoño|antes de la votación",
    ),
    "fr": (
        "le conseil|la commission|ce parlement|notre groupe|le comité",
        "soutient|rejette|examine|salue|prépare",
        "le nouveau budget|la loi sur l'énergie|l'accord commercial|le rapport sur le climat|la politique commune"
        "|le marché numérique",
        "aujourd'hui|cette semaine|cette année|en juin|en automne|avant le vote",
    ),
    "it": (
        "il consiglio|la commissione|questo parlamento|il nostro gruppo|il comitato",
        "sostiene|respinge|discute|accoglie|prepara",
        "il nuovo bilancio|la legge sull'energia|l'accordo commerciale|la relazione sul clima|la politica comune"
        "|il mercato digitale",
        "oggi|questa settimana|quest'anno|a giugno|in autunno|prima del voto",
    ),
    "de": (
        "der rat|die kommission|dieses parlament|unsere fraktion|der ausschuss",
        "unterstützt|verwirft|berät|begrüßt|prüft",
        "den neuen haushalt|das energiegesetz|das handelsabkommen|den klimabericht|die gemeinsame politik"
        "|den digitalen markt",
        "heute|diese woche|dieses jahr|im juni|im herbst|vor der abstimmung",
    ),
    "pl": (
        "rada|komisja|ten parlament|nasza grupa|komitet",
        "popiera|odrzuca|omawia|przyjmuje|przygotowuje",
        "nowy budżet|ustawę o energii|umowę handlową|raport o klimacie|wspólną politykę|rynek cyfrowy",
        "dzisiaj|w tym tygodniu|w tym roku|w czerwcu|jesienią|przed głosowaniem",
    ),
}

# --------------------------------------------------------------------------------------------------------- fleurs
# Who, does, what, when: entry k of a slot means the same in every language, so a combination is one sentence id.
_PARALLEL = {
    "en": (
        "The teacher|The doctor|My sister|Our neighbour|The young man|Her aunt",
        "sees|buys|finds|sells|brings|shows",
        "a red bicycle|an old clock|a small boat|fresh bread|a new book|a black cat|a wooden chair|two lemons",
        "in the city|near the river|in the morning|in summer|on Sunday|after lunch",
        "{0} {1} {2} {3}.",
    ),
    "es": (
        "La maestra|El médico|Mi hermana|Nuestro vecino|El joven|Su tía",
        "ve|compra|encuentra|vende|trae|muestra",
        "una bicicleta roja|un reloj antiguo|un barco pequeño|pan fresco|un libro nuevo|un gato negro"
        "|una silla de madera|dos limones",
        "en la ciudad|cerca del río|por la mañana|en verano|el domingo|después de comer",
        "{0} {1} {2} {3}.",
    ),
    "fr": (
        "L'enseignante|Le médecin|Ma sœur|Notre voisin|Le jeune homme|Sa tante",
        "voit|achète|trouve|vend|apporte|montre",
        "un vélo rouge|une vieille horloge|un petit bateau|du pain frais|un livre neuf|un chat noir"
        "|une chaise en bois|deux citrons",
        "en ville|près de la rivière|le matin|en été|dimanche|après le déjeuner",
        "{0} {1} {2} {3}.",
    ),
    "it": (
        "L'insegnante|Il medico|Mia sorella|Il nostro vicino|Il giovane|Sua zia",
        "vede|compra|trova|vende|porta|mostra",
        "una bicicletta rossa|un vecchio orologio|una piccola barca|del pane fresco|un libro nuovo|un gatto nero"
        "|una sedia di legno|due limoni",
        "in città|vicino al fiume|di mattina|in estate|la domenica|dopo pranzo",
        "{0} {1} {2} {3}.",
    ),
    "de": (
        "Die Lehrerin|Der Arzt|Meine Schwester|Unser Nachbar|Der junge Mann|Ihre Tante",
        "sieht|kauft|findet|verkauft|bringt|zeigt",
        "ein rotes Fahrrad|eine alte Uhr|ein kleines Boot|frisches Brot|ein neues Buch|eine schwarze Katze"
        "|einen Holzstuhl|zwei Zitronen",
        "in der Stadt|am Fluss|am Morgen|im Sommer|am Sonntag|nach dem Essen",
        "{0} {1} {3} {2}.",
    ),
    "pl": (
        "Nauczycielka|Lekarz|Moja siostra|Nasz sąsiad|Młody mężczyzna|Jej ciocia",
        "widzi|kupuje|znajduje|sprzedaje|przynosi|pokazuje",
        "czerwony rower|stary zegar|małą łódkę|świeży chleb|nową książkę|czarnego kota|drewniane krzesło|dwie cytryny",
        "w mieście|nad rzeką|rano|latem|w niedzielę|po obiedzie",
        "{0} {1} {2} {3}.",
    ),
}

# -------------------------------------------------------------------------------------------------------- minds14
INTENTS = (
    "abroad", "address", "app_error", "atm_limit", "balance", "business_loan", "card_issues", "cash_deposit",
    "direct_debit", "freeze", "high_value_payment", "joint_account", "latest_transactions", "pay_bill",
)  # fmt: skip
# Openings, endings, and two phrases an intent, in the order of INTENTS; entry k means the same in every language.
_BANKING = {
    "en": (
        "I have a question about {}|I need help with {}|I want to know more about {}|I am calling about {}",
        "|now|as soon as possible|thank you",
        "using my card abroad|payments in another country",
        "my new address|a change of address",
        "an error in the app|the app that always closes",
        "the cash machine limit|my daily withdrawal limit",
        "the balance of my account|the money left in my account",
        "a loan for my company|a business credit",
        "my broken card|a card that does not work",
        "a deposit of cash|paying in cash",
        "a direct debit|a new direct debit mandate",
        "blocking my card|my stolen card",
        "a very large payment|a transfer of high value",
        "a joint account|an account with my wife",
        "my latest transactions|the last movements on my account",
        "the payment of a bill|my electricity bill",
    ),
    "es": (
        "tengo una pregunta sobre {}|necesito ayuda con {}|quiero saber más sobre {}|llamo por {}",
        "|ahora|lo antes posible|gracias",
        "el uso de mi tarjeta en el extranjero|los pagos en otro país",
        "mi nueva dirección|un cambio de domicilio",
        "un error en la aplicación|la aplicación que siempre se cierra",
        "el límite del cajero|mi límite diario de retirada",
        "el saldo de mi cuenta|el dinero que queda en mi cuenta",
        "un préstamo para mi empresa|un crédito comercial",
        "mi tarjeta rota|una tarjeta que no funciona",
        "un ingreso en efectivo|un depósito en metálico",
        "una domiciliación|un nuevo recibo domiciliado",
        "el bloqueo de mi tarjeta|mi tarjeta robada",
        "un pago muy grande|una transferencia de alto valor",
        "una cuenta conjunta|una cuenta con mi esposa",
        "mis últimas operaciones|los últimos movimientos de mi cuenta",
        "el pago de una factura|mi factura de la luz",
    ),
    "fr": (
        "j'ai une question sur {}|j'ai besoin d'aide pour {}|je veux en savoir plus sur {}|j'appelle pour {}",
        "|maintenant|dès que possible|merci",
        "l'usage de ma carte à l'étranger|les paiements dans un autre pays",
        "ma nouvelle adresse|un changement de domicile",
        "une erreur dans l'application|l'application qui se ferme toujours",
        "la limite du distributeur|mon plafond de retrait",
        "le solde de mon compte|l'argent qui reste sur mon compte",
        "un prêt pour mon entreprise|un crédit professionnel",
        "ma carte cassée|une carte qui ne marche pas",
        "un dépôt d'espèces|un versement en liquide",
        "un prélèvement automatique|un nouveau prélèvement",
        "le blocage de ma carte|ma carte volée",
        "un très gros paiement|un virement de grande valeur",
        "un compte joint|un compte avec ma femme",
        "mes dernières opérations|les derniers mouvements de mon compte",
        "le paiement d'une facture|ma facture d'électricité",
    ),
    "it": (
        "ho una domanda su {}|ho bisogno di aiuto per {}|vorrei sapere di più su {}|chiamo per {}",
        "|adesso|il prima possibile|grazie",
        "l'uso della carta all'estero|i pagamenti in un altro paese",
        "il mio nuovo indirizzo|un cambio di residenza",
        "un errore nell'applicazione|l'applicazione che si chiude sempre",
        "il limite del bancomat|il mio limite di prelievo",
        "il saldo del mio conto|i soldi rimasti sul mio conto",
        "un prestito per la mia azienda|un credito aziendale",
        "la mia carta rotta|una carta che non funziona",
        "un deposito di contanti|un versamento in contanti",
        "un addebito diretto|una domiciliazione bancaria",
        "il blocco della mia carta|la mia carta rubata",
        "un pagamento molto grande|un bonifico di valore elevato",
        "un conto cointestato|un conto con mia moglie",
        "le mie ultime operazioni|gli ultimi movimenti del mio conto",
        "il pagamento di una bolletta|la mia bolletta della luce",
    ),
    "de": (
        "ich habe eine Frage zu {}|ich brauche Hilfe mit {}|ich komme nicht weiter mit {}|es gibt ein Problem mit {}",
        "|jetzt|so bald wie möglich|danke",
        "meiner Karte im Ausland|Zahlungen in einem anderen Land",
        "meiner neuen Adresse|einem Wechsel der Anschrift",
        "einem Fehler in der App|der abgestürzten App",
        "dem Limit am Geldautomaten|meinem täglichen Limit",
        "dem Stand meines Kontos|dem Guthaben auf meinem Konto",
        "einem Kredit für meine Firma|einem Geschäftskredit",
        "meiner kaputten Karte|einer defekten Karte",
        "einer Einzahlung von Bargeld|einer Bareinzahlung",
        "einer Lastschrift|einem neuen Lastschriftmandat",
        "der Sperrung meiner Karte|meiner gestohlenen Karte",
        "einer sehr großen Zahlung|einer Überweisung von hohem Wert",
        "einem Gemeinschaftskonto|einem Konto mit meiner Frau",
        "meinen letzten Umsätzen|den letzten Buchungen auf meinem Konto",
        "der Zahlung einer Rechnung|meiner Stromrechnung",
    ),
    "pl": (
        "mam pytanie o {}|proszę o pomoc chodzi o {}|chcę zapytać o {}|dzwonię bo chodzi o {}",
        "|teraz|jak najszybciej|dziękuję",
        "użycie karty za granicą|płatności w innym kraju",
        "mój nowy adres|zmianę adresu",
        "błąd w aplikacji|aplikację która się zamyka",
        "limit w bankomacie|mój dzienny limit wypłat",
        "stan mojego konta|pieniądze na moim koncie",
        "pożyczkę dla mojej firmy|kredyt firmowy",
        "moją zepsutą kartę|kartę która nie działa",
        "wpłatę gotówki|depozyt gotówkowy",
        "polecenie zapłaty|nowe polecenie zapłaty",
        "blokadę mojej karty|moją skradzioną kartę",
        "bardzo dużą płatność|przelew dużej kwoty",
        "wspólne konto|konto z moją żoną",
        "moje ostatnie transakcje|ostatnie operacje na moim koncie",
        "zapłatę rachunku|mój rachunek za prąd",
    ),
}


def command_sentences(language: str) -> list[list[str]]:
    """Every sentence of the `mls` grammar, one list per pattern: "open the door in the kitchen on monday"."""
    *slots, counted = _COMMANDS[language]
    choices = dict(zip(_SLOTS, (slot.split("|") for slot in slots), strict=True))
    # In German, time comes before the object.
    dated = "{person} {act} {day} {number} {thing}" if language == "de" else "{person} {act} {number} {thing} {day}"
    patterns = ("{verb} {object} {place}", "{verb} {object} {place} {day}", counted, dated)
    return [_fill(pattern, choices) for pattern in patterns]


def parliament_sentences(language: str) -> list[str]:
    """Every sentence of the `voxpopuli` grammar."""
    slots = (slot.split("|") for slot in _PARLIAMENT[language])
    choices = dict(zip(("who", "does", "what", "when"), slots, strict=True))
    return _fill("{who} {does} {when} {what}" if language == "de" else "{who} {does} {what} {when}", choices)


def parallel_sentences(language: str) -> list[str]:
    """Every sentence of the `fleurs` grammar, cased and with its full stop; entry k is the same sentence everywhere."""
    *slots, order = _PARALLEL[language]
    return [order.format(*words) for words in product(*(slot.split("|") for slot in slots))]


def banking_sentences(language: str) -> list[list[str]]:
    """Every sentence of the `minds14` grammar, one list per intent; entry k means the same in every language."""
    openings, endings, *phrases = (slot.split("|") for slot in _BANKING[language])
    return [
        [f"{opening.format(phrase)} {ending}".strip() for opening, phrase, ending in product(openings, pair, endings)]
        for pair in phrases
    ]


def _fill(pattern: str, choices: dict[str, list[str]]) -> list[str]:
    names = [name for name in choices if "{" + name + "}" in pattern]
    return [pattern.format(**dict(zip(names, words, strict=True))) for words in product(*(choices[n] for n in names))]
